// docs/protocol.md as data: messages, choices, numbers, frames, error codes, charges and test vectors.
// A peer that is built from these tables shows that the page alone is enough.
import { readFileSync } from 'node:fs'

const text = readFileSync(new URL('../../../docs/protocol.md', import.meta.url), 'utf8')
const UNITS = { KiB: 1024, MiB: 1024 ** 2, s: 1000 }

function * tables () {
  let table = null
  for (const line of text.split('\n')) {
    if (!line.startsWith('|')) {
      if (table) yield table
      table = null
      continue
    }
    const cells = line.split('|').slice(1, -1).map(cell => cell.trim().replaceAll('`', ''))
    if (!table) table = { header: cells.join('|'), rows: [] }
    else if (!cells[0].startsWith('---')) table.rows.push(cells)
  }
}

/** `256 KiB` is 262144. Durations become milliseconds, whatever unit the name ends in. */
const numberOf = cell => {
  const [amount, unit] = cell.split(' ')
  const digits = amount.replaceAll(',', '')
  const value = Number.isSafeInteger(Number(digits)) || digits.includes('.') ? Number(digits) : BigInt(digits)
  return unit in UNITS ? value * UNITS[unit] : value
}

/** `{message: [{name, type, fallback}]}`, fields in the order of the page. */
export const messages = {}
export const choices = {}
export const numbers = {}
export const frames = {}
/** Error codes after which another node may succeed. */
export const retryable = new Set()
export const charges = []

const readers = {
  'message|field|type|default|what it is': rows => {
    let fields
    for (const [message, name, type, fallback] of rows) {
      if (message) fields = messages[message] = []
      if (name !== '–') fields.push({ name, type, fallback })
    }
  },
  'choice|words|note': rows => {
    for (const [choice, words] of rows) choices[choice] = words.split(', ')
  },
  'name|value|of what': rows => {
    for (const [name, value] of rows) numbers[name] = numberOf(value)
  },
  'frame|number|sent by|body': rows => {
    for (const [name, number] of rows) frames[name] = Number(number)
  },
  'code|elsewhere|caused by|means': rows => {
    for (const [code, elsewhere] of rows) if (elsewhere === 'yes') retryable.add(code)
  },
  'input_tokens|output_tokens|images|tensor_elements|prices|finish|charge|fee_bps|provider': rows => charges.push(...rows)
}
for (const { header, rows } of tables()) readers[header]?.(rows)

/** Section 10: an indented line begins a value, or goes on with the value above it. */
export const vectors = {}
let name
for (const line of text.slice(text.indexOf('## 10.')).split('\n')) {
  const begun = /^ {4}(\S+(?: \S+)*) {2,}(\S.*)$/.exec(line)
  const more = /^ {8,}(\S.*)$/.exec(line)
  if (begun) vectors[name = begun[1]] = begun[2]
  else if (more) vectors[name] += more[1]
}
