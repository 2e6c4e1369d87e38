"""Proof that what is stored is right: transfers, balances, and the rows beside them."""
