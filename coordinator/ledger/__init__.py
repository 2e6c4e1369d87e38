"""Double-entry money: pure rules, the market's vocabulary on top, one durable writer, an audit."""
