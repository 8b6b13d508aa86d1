// Parses server-sent events from text that arrives in chunks (HTML Living Standard, 9.2.6).

export class EventParser {
  #rest = "";

  /** Return the events that `text` completes: [{event, data}], data parsed from JSON. */
  feed(text) {
    this.#rest += text;
    const blocks = this.#rest.split(/\r?\n\r?\n/);
    this.#rest = blocks.pop();
    return blocks.map(parsed).filter((event) => event !== null);
  }
}

function parsed(block) {
  const fields = { event: "message", data: [] };
  for (const line of block.split(/\r?\n/)) {
    if (line.startsWith("event:")) fields.event = line.slice(6).trim();
    else if (line.startsWith("data:")) fields.data.push(line.slice(5).replace(/^ /, ""));
  }
  return fields.data.length ? { event: fields.event, data: JSON.parse(fields.data.join("\n")) } : null;
}
