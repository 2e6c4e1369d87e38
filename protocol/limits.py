"""Every bound on what a peer may send, each with its reason. Nothing here is tunable at run time:
a limit that two parties disagree on is an outage.
"""

KIB = 1024
MIB = 1024 * KIB

# A frame is one msgpack body. Bigger payloads travel as several JOB_DATA frames, so that one upload
# does not delay other jobs' tokens on the same stream: 256 KiB is about 4 ms at 75 MB/s.
FRAME_BYTES_MAX = 256 * KIB

# One job's input. A 12-megapixel photograph as JPEG is 4–6 MB; 8 MiB takes it with room.
PAYLOAD_BYTES_MAX = 8 * MIB

# One job's whole output: 131,072 tokens of 8 bytes with their scores, or 2,048 embeddings of 1,024
# floats.
OUTPUT_BYTES_MAX = 9 * MIB

# Maps and lists in one message, nested ones included. An empty one is a byte on the wire and 64 in
# memory, so size alone is no bound; what needs most is a chat of CHAT_MESSAGES_MAX with tool calls.
CONTAINERS_MAX = 16_384

# A signed message names a handful of ids and numbers. An offer lists models, which is the longest.
SIGNED_BYTES_MAX = 32 * KIB

# Gossip costs 3–14 ms of CPU per message and node, and libp2p drops what is over 1 MiB in silence.
OFFER_BYTES_MAX = 28 * KIB
OFFER_MODELS_MAX = 64
OFFER_ADDRESSES_MAX = 8

# Text fields: a name fits a line, a message fits a paragraph.
NAME_CHARS_MAX = 128
# In lists they are counted in bytes: five lists of 64 must fit into one signed message.
NAME_BYTES_MAX = 128
ADDRESS_CHARS_MAX = 256
MESSAGE_CHARS_MAX = 1_000

# Lists in constraints (`only`, `ignore`, `order`, regions).
LIST_ITEMS_MAX = 64

# Beginnings of an input by which its node is chosen: a session, a conversation, its system text.
AFFINITIES_MAX = 4
# Two conversations of one client never meet by chance, and a signed request stays small.
AFFINITY_BYTES = 16

# What one job may hold: the longest context in the field is far below a million tokens.
TOKENS_MAX = 1_048_576
CHAT_MESSAGES_MAX = 2_048
STOP_STRINGS_MAX = 8
STOP_CHARS_MAX = 128
# As at OpenAI.
EMBEDDING_TEXTS_MAX = 2_048
# Numbers of one embedding: many times what any model has.
DIMENSIONS_MAX = 65_536
LABELS_MAX = 1_000
# A model of tables has one input, one with several towers a handful.
TENSORS_MAX = 32
TENSOR_RANK_MAX = 8
# Strings are read one by one: so many take some tens of milliseconds.
TENSOR_STRINGS_MAX = 65_536
# Elements that one job may be metered for: as many as its payload has bytes.
TENSOR_ELEMENTS_MAX = PAYLOAD_BYTES_MAX
# Rows that the answer to a row may depend on. They travel with the first part of a stream, and with
# each that goes to a node which does not have them.
WINDOW_ROWS_MAX = 4_096
# What a node keeps of one stream: with a payload they fit into one tensor. A longer window travels.
STREAM_WINDOW_BYTES_MAX = MIB
# A stream's name is drawn at random, and nothing else tells it from others of its client.
STREAM_ID_BYTES = 16
TOOLS_MAX = 128
TOOL_CALLS_MAX = 128
# A JSON schema, a grammar, or what a chat template is given: longer ones take seconds to compile.
FORMAT_CHARS_MAX = 64 * KIB
LOGIT_BIASES_MAX = 1_024
STOP_TOKENS_MAX = 128
TOP_LOGPROBS_MAX = 20

# Jobs at once on one client–node stream: twice what the largest engine runs, so queues can form.
CHANNELS_PER_PEER_MAX = 256

# NTP keeps honest clocks within a second; 30 s forgives a laptop that just woke up.
CLOCK_SKEW_MAX_MS = 30_000

# What a model that is not in memory may take to be loaded: 140 GB from a fast disk. No buyer waits
# longer for an answer to begin.
LOAD_MS_MAX = 120_000
# A job whose lease says nothing of a load waits for a short one all the same: its client gives the
# node up after five seconds.
LOAD_UNTOLD_MS_MAX = 3_000

# An offer outlives three refreshes, so that one lost message does not hide a node.
OFFER_REFRESH_MS = 60_000
OFFER_LIFETIME_MAX_MS = 4 * OFFER_REFRESH_MS
# A worker that flaps must not turn into gossip: at most one new offer of a node in this time.
OFFER_INTERVAL_MIN_MS = 2_000

# The longest job that anyone may run in one piece.
JOB_DURATION_MAX_MS = 10 * 60_000

# From lease to JOB_OPEN at the node: a dial over a relay and a large upload, no more.
LEASE_OPEN_WITHIN_MS = 30_000

# A node names in its load report the leases that were opened since the last one. More than this are
# opened between two reports only after an outage, and then follow in the next.
OPENED_LEASES_MAX = 256

# A receipt for a job that met its deadline may still be in flight: holds wait this long.
RECEIPT_GRACE_MS = 60_000

# How long a client waits for a node where the coordinator says nothing: a long queue and a long
# prompt before the first output; a slow token after it.
FIRST_OUTPUT_WITHIN_MS = 60_000
GAP_WITHIN_MS = 30_000

# A window of output that a client signs for: small for strangers, since it is what one of the two
# can lose, and up to a second or two of output for those with a record.
WINDOW_TOKENS_MIN = 16
WINDOW_TOKENS_MAX = 256
# Links of a hash chain: computing all of them takes a few milliseconds at most.
LINKS_MAX = 4_096
# Steps in which a client signs for its input: each is 1.6 % of the most that it allowed.
INPUT_STEPS_MAX = 64

# The salt of a job's digests: no attacker can try that many.
SALT_BYTES = 16

# How many parts a purchase may come in; a client tries fewer nodes than that.
PARTS_MAX = 64

# With five nodes tried, the market has a problem that a sixth attempt only hides; ladders of 64
# attempts have turned bursts into storms (d-inference#512).
ATTEMPTS_MAX = 5
