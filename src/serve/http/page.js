"use strict";

// What the pages of the server have in common: elements, what this browser keeps, colours.
const $ = (id) => document.getElementById(id);
const store = {
  get(key, fallback) {
    try {
      return JSON.parse(localStorage.getItem("pronghorn." + key)) ?? fallback;
    } catch {
      return fallback;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem("pronghorn." + key, JSON.stringify(value));
    } catch {
      notice("This browser's storage is full: nothing more is kept.");
    }
  },
};

const settings = store.get("settings", {});  // of the chat; the key is for both pages

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function headers() {
  const all = {"Content-Type": "application/json"};
  if (settings.key) all.Authorization = "Bearer " + settings.key;
  return all;
}

async function problemOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return "the server answered with " + response.status;
  }
}

const themes = {"": ["◐", "Colours: as the system has them"], light: ["☀", "Colours: light"], dark: ["☾", "Colours: dark"]};
function showTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = themes[theme][0];
  $("theme").ariaLabel = $("theme").title = themes[theme][1];
}

// onChange: called after the colours have changed.
function connectTheme(onChange) {
  showTheme(store.get("theme", ""));
  $("theme").onclick = () => {
    const order = ["", "light", "dark"];
    const next = order[(order.indexOf(store.get("theme", "")) + 1) % order.length];
    store.set("theme", next);
    showTheme(next);
    onChange();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onChange);
}
