"""A long quiet run: does any program of ours grow while it serves?"""
