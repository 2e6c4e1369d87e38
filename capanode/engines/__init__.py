"""What runs inside the sandboxed worker: one interface (`base`), one module per kind of model."""
