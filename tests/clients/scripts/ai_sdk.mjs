// Vercel's AI SDK with its provider for OpenAI-compatible servers.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateObject, generateText, streamText, tool } from 'ai'
import { z } from 'zod'

const [url, key, name, what] = process.argv.slice(2)
const provider = createOpenAICompatible({
  name: 'capacloud', baseURL: `${url}/v1`, apiKey: key, supportsStructuredOutputs: true
})
const asked = { model: provider(name), prompt: 'Say hello.', maxRetries: 0 }
const weather = tool({ description: 'The weather', inputSchema: z.object({ city: z.string() }) })

const tries = {
  text: async () => [(await generateText(asked)).text, await streamText(asked).text],
  tool: async () => {
    const { finishReason, toolCalls } = await generateText({ ...asked, tools: { get_weather: weather } })
    return [finishReason, toolCalls[0].toolName, toolCalls[0].input]
  },
  object: async () =>
    (await generateObject({ ...asked, schema: z.object({ name: z.string(), age: z.number() }) })).object
}
console.log(JSON.stringify(await tries[what]()))
