"""The HTTP front: OpenAI's API, served as a client of the market.

HTTP lives on one asyncio thread (uvicorn), the market on trio; `bridge` is the only way between
them. Requests are parsed, limited and answered on the asyncio side; jobs run on the trio side.
"""
