"""The gateway's asyncio half: routes, dialects, limits and the application that joins them.

Nothing here knows trio: the market is called through `coordinator.gateway.bridge`.
"""
