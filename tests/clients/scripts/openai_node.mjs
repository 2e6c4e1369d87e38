// The `openai` package of npm: a chat whole and streamed, a tool call, a typed answer.
import OpenAI from 'openai'

const [url, key, model, what] = process.argv.slice(2)
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 })
const messages = [{ role: 'user', content: 'Say hello.' }]
const tools = [{ type: 'function', function: { name: 'get_weather', parameters: { type: 'object' } } }]

async function text () {
  const whole = await client.chat.completions.create({ model, messages })
  let streamed = ''
  for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
    streamed += chunk.choices[0]?.delta?.content ?? ''
  }
  return [whole.choices[0].message.content, streamed]
}

async function tool () {
  const stream = client.chat.completions.stream({ model, messages, tools })
  const answer = await stream.finalChatCompletion()
  const [call] = answer.choices[0].message.tool_calls
  return [answer.choices[0].finish_reason, call.function.name, call.function.arguments]
}

console.log(JSON.stringify(await (what === 'tool' ? tool() : text())))
