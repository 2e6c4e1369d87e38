"""The gateway's trio half: what it needs of the market, and how a job runs there.

Nothing here knows asyncio or HTTP; calls come in through `coordinator.gateway.bridge`.
"""
