"""Files of models for other nodes, which a node or a coordinator gives from a store of models."""
