// Section 10 of the page and its table of charges, made again. Prints what was compared and what differs.
import { Chain, Tally, canonicalManifest, charge, drawnSeed, inputDigest, isLinkOf, offerTopic, payloadDigest, providerShare, windowsOf } from './peer/accounting.mjs'
import { bytesOf, decode, digestOf, encode, hex, identityOf, open, seal, sha256 } from './peer/messages.mjs'
import { charges, frames, vectors } from './peer/page.mjs'

const compared = []
const differing = []
const same = (what, made, onPage) => {
  compared.push(what)
  if (String(made) !== String(onPage)) differing.push({ what, made: String(made), page: String(onPage) })
}

const parties = {}
for (const name of ['client', 'coordinator', 'node']) {
  parties[name] = await identityOf(bytesOf(vectors[`${name} seed`]))
  same(`${name} public key`, hex(parties[name].raw), vectors[`${name} public key`])
  same(`${name} peer id`, parties[name].id, vectors[`${name} peer id`])
}

const frameOf = name => {
  const bytes = Buffer.from(bytesOf(vectors[name]))
  same(`${name}: version`, bytes[0], 1)
  same(`${name}: type`, bytes[1], frames[name.split(' ')[0]])
  same(`${name}: channel`, bytes.readUInt32BE(2), name === 'HELLO' ? 0 : 1)
  same(`${name}: length`, bytes.readUInt32BE(6), bytes.length - 10)
  return new Uint8Array(bytes.subarray(10))
}

const bodyOf = (name, message) => {
  const bytes = frameOf(name)
  const value = decode(message, bytes)
  same(`${name}: encoded again`, hex(encode(message, value)), hex(bytes))
  return value
}

const envelopeOf = async (what, kind, signer, bytes, digest) => {
  const opened = await open(kind, bytes)
  same(`${what}: signer`, opened.signer, parties[signer].id)
  same(`${what}: digest`, opened.digest, digest ?? digestOf(kind, opened.body))
  const again = await seal(parties[signer], kind, opened.message)
  same(`${what}: sealed again`, hex(again.bytes), hex(bytes))
  return opened
}

const manifest = JSON.parse(vectors.manifest)
same('manifest', canonicalManifest(manifest), vectors.manifest)
same('manifest digest', hex(sha256(canonicalManifest(manifest))), vectors['manifest digest'])
same('offer topic', offerTopic(parties.node.id), vectors['offer topic'])
const offer = await envelopeOf('offer', 'node_offer', 'node', bytesOf(vectors['offer envelope']), vectors['offer digest'])
same('cold model: encoded again', hex(encode('model_offer', decode('model_offer', bytesOf(vectors['cold model'])))), vectors['cold model'])

bodyOf('HELLO', 'hello')
const opening = bodyOf('JOB_OPEN', 'open_body')
const request = await envelopeOf('request', 'job_request', 'client', opening.request, vectors['request digest'])
const lease = await envelopeOf('lease', 'lease', 'coordinator', opening.lease, vectors['lease digest'])
const opened = await envelopeOf('opening', 'job_opening', 'client', opening.opening)
same('payload', hex(opening.payload), vectors.payload)
same('payload: encoded again', hex(encode('generation_input', decode('generation_input', opening.payload))), vectors.payload)
same('payload digest', payloadDigest(opening.salt, opening.payload), vectors['payload digest'])
same('salt', hex(opening.salt), vectors.salt)
same('request names the payload', request.message.payload_digest, vectors['payload digest'])
same('lease names the request', lease.message.request_digest, request.digest)
same('lease names the offer', lease.message.offer_digest, offer.digest)
same('opening names the lease', opened.message.lease_digest, lease.digest)
const { units_max: unitsMax, price, ceiling_nano: ceiling } = lease.message
same('ceiling', charge(unitsMax, price, 'length'), ceiling)

const accepted = bodyOf('JOB_ACCEPTED', 'accepted_body')
const admission = await envelopeOf('admission', 'job_admission', 'node', accepted.admission)
const tally = new Tally(opening.salt)
tally.add(bodyOf('JOB_CHUNK 1', 'chunk'))
const cutDigest = tally.digest
const cutTokens = tally.tokenIds.length
const windows = windowsOf(lease.message)
const progress = Buffer.from(frameOf('JOB_PROGRESS'))
const index = progress.readUInt32BE()
same('progress: link number', index, windows.outputLink(tally.tokenIds.length))
same('progress: link', isLinkOf(admission.message.anchor, index, progress.subarray(4)), true)
const countersign = Buffer.from(frameOf('JOB_COUNTERSIGN'))
same('countersign: input link number', countersign.readUInt32BE(), windows.inputLink(admission.message.input_units.input_tokens))
same('countersign: input link', isLinkOf(opened.message.input_anchor, countersign.readUInt32BE(), countersign.subarray(4, 36)), true)
same('countersign: output link number', countersign.readUInt32BE(36), windows.outputLink(tally.tokenIds.length))
same('countersign: output link', isLinkOf(opened.message.output_anchor, countersign.readUInt32BE(36), countersign.subarray(40)), true)
tally.add(bodyOf('JOB_CHUNK 2', 'chunk'))
same('output digest', tally.digest, vectors['output digest'])

const receipt = await envelopeOf('receipt', 'receipt', 'node', frameOf('JOB_RECEIPT'), vectors['receipt digest'])
same('receipt: lease', receipt.message.lease_digest, lease.digest)
same('receipt: output', receipt.message.output_digest, tally.digest)
same('receipt: amount', receipt.message.amount_nano, charge(receipt.message.units, price, receipt.message.finish))
same('receipt: opening', hex(receipt.message.opening), hex(opening.opening))
same('receipt: countersigned', hex(receipt.message.countersigned.link), hex(countersign.subarray(40)))
const acceptance = await envelopeOf('acceptance', 'acceptance', 'client', bytesOf(vectors['acceptance envelope']), vectors['acceptance digest'])
same('acceptance body', hex(acceptance.body), vectors['acceptance body'])
same('signature', hex(acceptance.signature), vectors.signature)
same('acceptance: receipt', acceptance.message.receipt_digest, receipt.digest)
const tokenIds = vectors['input token ids'].split(',').map(Number)
same('input digest', inputDigest(opening.salt, [tokenIds], 2), vectors['input digest'])
same('drawn seed', drawnSeed(request.digest), vectors['drawn seed'])

const delivery = await envelopeOf('delivery', 'delivery', 'client', bytesOf(vectors['delivery envelope']), vectors['delivery digest'])
same('delivery: lease', delivery.message.lease_digest, lease.digest)
same('delivery: output', delivery.message.output_digest, cutDigest)
same('delivery: output tokens', delivery.message.units.output_tokens, cutTokens)
same('delivery: input tokens', delivery.message.units.input_tokens, admission.message.input_units.input_tokens)
const handIn = bodyOf('REQUEST', 'request_body')
same('REQUEST: method', handIn.method, 'delivery')
same('REQUEST: body', hex(encode('delivery_ask', { delivery: delivery.bytes })), hex(handIn.body))

const chain = new Chain(windows.outputLinks)
same('a chain of our own', isLinkOf(chain.anchor, windows.outputLinks, chain.link(windows.outputLinks)), true)
for (const [input, output, images, elements, prices, finish, amount, feeBps, provider] of charges) {
  const [a, b, c, d, e] = prices.split('/').map(price => Number(price.trim().replaceAll(',', '')))
  const sheet = { input_nano_per_mtok: a, output_nano_per_mtok: b, image_nano: c, request_nano: d, tensor_nano_per_kelement: e }
  const made = charge({ input_tokens: input, output_tokens: output, images, tensor_elements: elements.replaceAll(',', '') }, sheet, finish)
  same(`charge of ${input}+${output}+${images}+${elements} ${finish}`, made, amount.replaceAll(',', ''))
  same(`provider's share of ${amount}`, providerShare(made, Number(feeBps)), provider.replaceAll(',', ''))
}

console.log(JSON.stringify({ compared: compared.length, differing }))
