// One JSON object a line: calls come on standard input, answers go to standard output.
import { createInterface } from 'node:readline'

const plain = (name, value) => {
  if (value instanceof Uint8Array || value?.type === 'Buffer') return Buffer.from(value.data ?? value).toString('hex')
  return typeof value === 'bigint' ? String(value) : value
}

/** Each line is `{id, call, with}`; `calls[call]` gets `with`. Ends when standard input does. */
export const serveCalls = calls => {
  const answer = async ({ id, call, with: given }) => {
    try {
      return { id, result: await calls[call](given) ?? null }
    } catch (error) {
      return { id, error: { code: error.code ?? 'internal', message: `${error.stack}` } }
    }
  }
  const lines = createInterface({ input: process.stdin })
  lines.on('line', async line => process.stdout.write(`${JSON.stringify(await answer(JSON.parse(line)), plain)}\n`))
  lines.on('close', () => process.exit(0))
}
