// The part of the page that shows messages; chat.js has what it shows.

// Code in fences and between backticks, and bold text; all else stays as it is.
function formatted(text) {
  const parts = [];
  text.split(/^```/m).forEach((part, index, all) => {
    if (index % 2 === 1) {
      const code = part.replace(/^[^\n]*\n?/, "").replace(/\n$/, "");
      parts.push(element("pre", {tabIndex: 0}, element("code", {textContent: code})));
      return;
    }
    const plain = (index > 0 ? part.replace(/^[^\n]*\n*/, "") : part).replace(index + 1 < all.length ? /\n+$/ : "", "");
    for (const piece of plain.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
      if (/^`[^`]+`$/.test(piece)) parts.push(element("code", {textContent: piece.slice(1, -1)}));
      else if (/^\*\*.+\*\*$/.test(piece)) parts.push(element("strong", {textContent: piece.slice(2, -2)}));
      else parts.push(piece);
    }
  });
  return parts;
}

function button(text, label, action) {
  return element("button", {type: "button", textContent: text, title: label, ariaLabel: label, onclick: action});
}

function rate(answer) {
  const timings = answer.timings;
  return timings && timings.tokens_per_second > 0 ? timings.tokens_per_second.toFixed(1) + " tokens/s" : "";
}

function drawUser(turn, index) {
  const body = element("div", {className: "body"}, ...formatted(turn.content));
  const tools = element("div", {className: "tools"},
    button("Edit", "Edit this message; what follows it goes", () => edit(turn, index)),
    button("Fork", "A new conversation up to this message", () => fork(index + 1)),
    button("Copy", "Copy this message", () => navigator.clipboard.writeText(turn.content)));
  return element("article", {className: "turn user", ariaLabel: "You"}, body, tools);
}

function edit(turn, index) {
  if (running.length > 0) return;
  const area = element("textarea", {value: turn.content, rows: 3, ariaLabel: "Edited message"});
  const form = element("div", {className: "edit"}, area,
    element("div", {},
      button("Cancel", "Leave the message as it was", draw),
      Object.assign(button("Send", "Send the edited message", () => {
        current.turns.length = index;
        ask(area.value);
      }), {className: "primary"})));
  $("log").children[index].replaceChildren(form);
  area.focus();
}

function drawAnswer(answer, name, named, writing) {
  const parts = [];
  if (named) parts.push(element("div", {className: "name", textContent: name}));
  if (answer.reasoning) {
    parts.push(element("details", {className: "reasoning", open: !answer.content},
      element("summary", {textContent: "Reasoning"}), element("div", {textContent: answer.reasoning})));
  }
  for (const call of answer.calls ?? []) {
    parts.push(element("div", {className: "body"},
      element("pre", {}, element("code", {textContent: call.name + "(" + call.arguments + ")"}))));
  }
  parts.push(element("div", {className: writing ? "body cursor" : "body"}, ...formatted(answer.content)));
  if (answer.error) parts.push(element("div", {className: "failed", role: "alert", textContent: answer.error}));
  const box = element("div", {className: "answer"}, ...parts);
  const tools = element("div", {className: "tools"});
  if (answer.usage) {
    const cached = answer.usage.prompt_tokens_details.cached_tokens;
    const facts = [rate(answer), cached + " of " + answer.usage.prompt_tokens + " prompt tokens from the cache"];
    if (answer.end === "length") facts.push("ended at its most tokens");
    tools.append(facts.filter(Boolean).join(" · "));
  }
  box.append(tools);
  return box;
}

function drawTurn(turn, index) {
  if (turn.role === "user") return drawUser(turn, index);
  const names = Object.keys(turn.answers);
  const last = index === current.turns.length - 1;
  const writing = last && running.length > 0;
  const columns = element("div", {className: "columns"},
    ...names.map((name) => drawAnswer(turn.answers[name], name, models.length > 1, writing && !turn.answers[name].end)));
  const box = element("article", {className: names.length > 1 ? "turn double" : "turn", ariaLabel: "Answer"}, columns);
  if (writing) return box;
  const tools = element("div", {className: "tools"});
  if (last) tools.append(button("Regenerate", "Another answer", regenerate));
  tools.append(button("Fork", "A new conversation up to this answer", () => fork(index + 1)),
    button("Copy", "Copy this answer", () => navigator.clipboard.writeText(names.map((name) => turn.answers[name].content).join("\n\n"))));
  box.append(tools);
  return box;
}

function draw() {
  const log = $("log");
  if (current.turns.length === 0) {
    log.replaceChildren(element("p", {className: "empty", textContent: "Ask something. Nothing leaves this server; conversations stay in this browser."}));
  } else {
    log.replaceChildren(...current.turns.map(drawTurn));
    log.scrollTop = log.scrollHeight;
  }
  drawList();
  drawStats();
  const busy = running.length > 0;
  $("send").hidden = busy;
  $("stop").hidden = !busy;
}

// The last turn again, at most once a frame; the page follows its end unless one has scrolled up.
let drawing = false;
function drawLast() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    const log = $("log");
    const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    const index = current.turns.length - 1;
    if (index >= 0 && log.children[index]) log.children[index].replaceWith(drawTurn(current.turns[index], index));
    if (follows) log.scrollTop = log.scrollHeight;
  });
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (count >= 1000 && unit + 1 < units.length) {
    count /= 1000;
    ++unit;
  }
  return count.toPrecision(3) + " " + units[unit];
}

function drawStats() {
  const turn = current.turns.findLast((one) => one.role === "assistant");
  const tables = Object.entries(turn ? turn.answers : {}).filter(([, answer]) => answer.usage).map(([name, answer]) => {
    const {usage, timings, cache} = answer;
    const rows = [
      ["Tokens a second", timings.tokens_per_second.toFixed(1)],
      ["Tokens written", usage.completion_tokens],
      ["Prompt tokens", usage.prompt_tokens],
      ["From the cache", cache.tokens],
      ["Cache", cache.why],
      ["Prompt tokens a second", timings.prompt_tokens_per_second.toFixed(0)],
      ["Waited", timings.queue_seconds.toFixed(2) + " s"],
      ["State", timings.state_bytes > 0 ? bytes(timings.state_bytes) : "not known"],
      ["Guesses that came true", timings.drafted > 0 ? timings.accepted + " of " + timings.drafted + " (" + Math.round(100 * timings.accepted / timings.drafted) + "%)" : "none made"],
    ];
    return element("table", {}, element("caption", {textContent: name}),
      ...rows.map(([key, value]) => element("tr", {}, element("th", {scope: "row", textContent: key}), element("td", {textContent: value}))));
  });
  $("stats").replaceChildren(...(tables.length > 0 ? tables : [element("p", {className: "quiet", textContent: "None yet."})]));
}
