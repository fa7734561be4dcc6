// A conversation is {id, title, models: [name, ...], turns: [{role: "user", content} or
// {role: "assistant", answers: {model: {content, reasoning, error, usage, timings, cache, end}}}]}.
let models = [];  // of the server
let conversations = store.get("conversations", []);
let current = null;
let running = [];  // an AbortController for each answer that is being written

const settingNames = ["system", "temperature", "top_p", "max_tokens", "seed", "key"];
Object.assign(settings, {temperature: 0.7, top_p: 1, ...settings});

function save() {
  store.set("conversations", conversations);
}

// --- conversations -------------------------------------------------------------------------------

function newConversation() {
  current = {
    id: Date.now().toString(36) + Math.random().toString(36).slice(2, 6),
    title: "",
    models: chosenModels(),
    turns: [],
  };
}

function open(conversation) {
  stop();
  current = conversation;
  const known = (name) => models.some((model) => model.id === name);
  if (known(current.models[0])) $("model-0").value = current.models[0];
  $("model-1").value = known(current.models[1]) ? current.models[1] : "";
  $("side").classList.remove("shown");
  draw();
}

// Keeps the conversation once something has been said in it.
function keep() {
  const first = current.turns.find((turn) => turn.role === "user");
  if (!current.title && first) current.title = first.content.trim().slice(0, 60);
  conversations = [current, ...conversations.filter((other) => other.id !== current.id)];
  save();
}

function fork(count) {
  const copy = structuredClone(current.turns.slice(0, count));
  const title = current.title;
  stop();
  newConversation();
  current.turns = copy;
  current.title = "↳ " + title.replace(/^↳ /, "");
  keep();
  draw();
  $("input").focus();
}

function drawList() {
  const items = conversations.map((conversation) => {
    const title = conversation.title || "Untitled";
    const item = element("li", {className: conversation.id === current.id ? "current" : ""},
      element("button", {className: "open", textContent: title, title, onclick: () => open(conversation)}),
      element("button", {
        className: "icon delete",
        textContent: "✕",
        ariaLabel: "Delete the conversation " + title,
        onclick() {
          conversations = conversations.filter((other) => other !== conversation);
          save();
          if (conversation.id === current.id) {
            stop();
            newConversation();
          }
          draw();
        },
      }));
    if (conversation.id === current.id) item.firstChild.setAttribute("aria-current", "true");
    return item;
  });
  $("list").replaceChildren(...items);
}

// --- asking --------------------------------------------------------------------------------------

function chosenModels() {
  return [$("model-0").value, $("model-1").value].filter(Boolean);
}

function number(text) {
  return text === undefined || text === null || text === "" ? undefined : Number(text);
}

// What one model has read and written so far, without the answer that is to come.
function history(name) {
  const messages = settings.system ? [{role: "system", content: settings.system}] : [];
  for (const turn of current.turns.slice(0, -1)) {
    if (turn.role === "user") {
      messages.push({role: "user", content: turn.content});
    } else {
      const answer = turn.answers[name] ?? Object.values(turn.answers)[0];
      messages.push({role: "assistant", content: answer.content});
    }
  }
  return messages;
}

function requestFor(name, again) {
  const seed = number(settings.seed);
  const body = {
    model: name,
    temperature: number(settings.temperature),
    top_p: number(settings.top_p),
    seed: seed === undefined ? undefined : seed + again,
    stream: true,
    stream_options: {include_usage: true},
  };
  const chat = models.find((model) => model.id === name)?.chat_template !== false;
  if (chat) return ["/v1/chat/completions", {...body, max_tokens: number(settings.max_tokens), messages: history(name)}];
  // A model without a template continues a text.
  const prompt = history(name).map((message) => message.content).join("");
  return ["/v1/completions", {...body, max_tokens: number(settings.max_tokens) ?? 200, prompt}];
}

function take(answer, event) {
  if (event.error) throw new Error(event.error.message);
  const choice = event.choices[0];
  if (choice) {
    const delta = choice.delta ?? {content: choice.text};
    answer.content += delta.content ?? "";
    answer.reasoning += delta.reasoning_content ?? "";
    for (const call of delta.tool_calls ?? []) {
      // The name and the beginning of the arguments, then what follows of them.
      const begun = answer.calls[call.index];
      if (begun) begun.arguments += call.function.arguments;
      else answer.calls[call.index] = call.function;
    }
    if (choice.finish_reason) answer.end = choice.finish_reason;
  }
  if (event.usage) Object.assign(answer, {usage: event.usage, timings: event.timings, cache: event.cache});
}

async function readEvents(response, onEvent) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const line = event.split("\n").find((one) => one.startsWith("data: "));
      if (line && line !== "data: [DONE]") onEvent(JSON.parse(line.slice(6)));
    }
  }
}

async function write(name, answer, again) {
  const control = new AbortController();
  running.push(control);
  try {
    const [path, body] = requestFor(name, again);
    const response = await fetch(path, {method: "POST", headers: headers(), body: JSON.stringify(body), signal: control.signal});
    if (!response.ok) throw new Error(await problemOf(response));
    await readEvents(response, (event) => {
      take(answer, event);
      drawLast();
    });
    answer.end ??= "broken off";
  } catch (error) {
    answer.end = "stopped";
    if (error.name !== "AbortError") answer.error = error.message;
  }
  running = running.filter((other) => other !== control);
}

async function answerLast(again) {
  const conversation = current;
  const answers = {};
  conversation.models = chosenModels();
  for (const name of conversation.models) answers[name] = {content: "", reasoning: "", calls: []};
  conversation.turns.push({role: "assistant", answers, again});
  keep();
  const writing = Object.entries(answers).map(([name, answer]) => write(name, answer, again));
  draw();
  await Promise.all(writing);
  save();
  draw();
}

function ask(text) {
  if (!text.trim() || running.length > 0) return;
  if (chosenModels().length === 0) return notice("No model is ready.");
  notice("");
  current.turns.push({role: "user", content: text});
  answerLast(0);
}

function regenerate() {
  if (running.length > 0) return;
  const last = current.turns.pop();
  answerLast((last.again ?? 0) + 1);
}

function stop() {
  for (const control of running) control.abort();
}

// --- models, settings, colours -------------------------------------------------------------------

async function loadModels() {
  try {
    const response = await fetch("/v1/models", {headers: headers()});
    if (!response.ok) throw new Error(await problemOf(response));
    const all = (await response.json()).data;
    models = all.filter((model) => model.status === "ready");
    const loading = all.filter((model) => model.status === "loading");
    notice(loading.length > 0 ? "Loading " + loading.map((model) => model.id).join(", ") + "…" : "");
    if (loading.length > 0) setTimeout(loadModels, 1000);
  } catch (error) {
    notice("The models cannot be listed: " + error.message);
  }
  const chosen = [$("model-0").value || store.get("model", ""), $("model-1").value];
  const options = () => models.map((model) => element("option", {value: model.id, textContent: model.id}));
  $("model-0").replaceChildren(...options());
  $("model-1").replaceChildren(element("option", {value: "", textContent: "one model"}), ...options());
  $("model-1").hidden = models.length < 2;
  if (models.some((model) => model.id === chosen[0])) $("model-0").value = chosen[0];
  if (models.some((model) => model.id === chosen[1])) $("model-1").value = chosen[1];
  draw();
}

function showSettings(shown) {
  $("settings").hidden = !shown;
  $("settings-open").ariaExpanded = String(shown);
  if (shown) $("system").focus();
  else $("settings-open").focus();
}

function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = input.scrollHeight + 2 + "px";
}

function connect() {
  for (const name of settingNames) {
    $(name).value = settings[name] ?? "";
    $(name).addEventListener("change", () => {
      settings[name] = $(name).value;
      store.set("settings", settings);
      if (name === "key") loadModels();
    });
  }
  $("new").onclick = () => {
    stop();
    newConversation();
    $("side").classList.remove("shown");
    draw();
    $("input").focus();
  };
  $("side-open").onclick = () => $("side").classList.add("shown");
  $("side-close").onclick = () => $("side").classList.remove("shown");
  $("settings-open").onclick = () => showSettings($("settings").hidden);
  $("settings-close").onclick = () => showSettings(false);
  $("model-0").onchange = () => store.set("model", $("model-0").value);
  $("stop").onclick = stop;
  $("input").oninput = grow;
  $("input").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("form").requestSubmit();
    }
  };
  $("form").onsubmit = (event) => {
    event.preventDefault();
    if (running.length > 0) return;
    const text = $("input").value;
    $("input").value = "";
    grow();
    ask(text);
  };
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if ($("side").classList.contains("shown")) $("side").classList.remove("shown");
    else if (!$("settings").hidden) showSettings(false);
    else stop();
  });
}

function start() {
  connect();
  connectTheme(() => {});
  newConversation();
  draw();
  loadModels();
}
