"""openai-agents, which speaks the Responses API by default: a run, a streamed run, and a tool."""

import asyncio
import json
import sys

from agents import Agent, Runner, function_tool, set_default_openai_client, set_tracing_disabled
from agents.exceptions import MaxTurnsExceeded
from openai import AsyncOpenAI

url, key, model, what = sys.argv[1:5]
set_tracing_disabled(True)
set_default_openai_client(AsyncOpenAI(base_url=f"{url}/v1", api_key=key))
asked = []


@function_tool
def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    asked.append(city)
    return "sunny"


async def run():
    if what == "text":
        agent = Agent(name="Greeter", instructions="Be brief.", model=model)
        whole = await Runner.run(agent, "hi")
        streamed = Runner.run_streamed(agent, "hi")
        async for _ in streamed.stream_events():
            pass
        return [whole.final_output, streamed.final_output]
    agent = Agent(name="Weather", model=model, tools=[get_weather])
    try:
        # The scripted model calls the tool in each turn.
        await Runner.run(agent, "Weather?", max_turns=2)
    except MaxTurnsExceeded:
        return asked


print(json.dumps(asyncio.run(run())))
