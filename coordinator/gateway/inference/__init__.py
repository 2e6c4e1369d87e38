"""What the doors for tensors share: a request of named tensors, the jobs that it is for each task,
and the tensors that their answers make. Nothing here knows HTTP or gRPC.
"""
