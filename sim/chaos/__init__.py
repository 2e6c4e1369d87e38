"""`python -m sim chaos`: a market of real processes under load, whose parts are killed and frozen.

`plan` decides from a seed what is hit and when, `load` asks questions as the stock client does,
`run` brings market, load and blows together, and `books` judges what lies on disk afterwards. Its
checks are plain SQL: nothing that keeps the books takes part in judging them.
"""
