"""The Open Inference Protocol V2 over gRPC, with what stock clients need of Triton's additions."""
