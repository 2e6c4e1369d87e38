"""Chats as every dialect has them: what a request asks of a model, and the events of its answer.

Pure: a dialect reads its own request into a `GenerationOrder`, and writes the events of an
`AnswerParser` in its own form.
"""
