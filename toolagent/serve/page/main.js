// The page: a form, lanes beside one another, and one step that all of them show.

import { Refused, about, example, play } from "./api.js";
import { Lane, make } from "./lane.js";

const MAX_BRANCHES = 3; // beside the originals
const STEP_MS = 900;
const EPISODE_MS = 12_000; // the steps of long episodes are shown for a shorter time
const $ = (id) => document.getElementById(id);
const short = new Intl.NumberFormat("en", { notation: "compact" });
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let info; // the server's `Models`
let inputs = []; // {name, kind, length, input, hint}: what poses a problem
let lanes = []; // Lane; `origin` is the lane that a branch left
let at = 0; // the step shown
let timer = null;
let asking = 0; // the newest question; older ones are answered too late
let problem = null; // as it was asked

// The form -----------------------------------------------------------------------------------

async function start() {
  info = await about();
  const does = info.response_length ? "call tools and read their answers" : "write a program";
  $("about").textContent = `Task ${info.task}. Watch a small network ${does}, token by token.`;
  inputs = info.posed_by.map(field);
  for (const { name, env_steps } of info.models) {
    const label = env_steps === null ? name : `${name}, ${short.format(env_steps)} steps`;
    $("model").append(make("option", { value: name }, label));
    $("other").append(make("option", { value: name }, label));
  }
  $("other").prepend(make("option", { value: "" }, "nobody"));
  if (info.models.length > 1) {
    $("other-field").hidden = false;
    $("other").value = info.models[1].name;
  } else $("other").value = "";
  if (!info.tells_stage) {
    $("stage-field").hidden = false;
    for (const { stage, formula } of info.stages) {
      $("stage").append(make("option", { value: stage }, formula ? `${stage}: ${formula}` : stage));
    }
    $("stage").value = info.example.stage;
  }
  $("tell-hint").hidden = !info.response_length;
  fill(info.example);
  hint();
  await submit(info.example);
}

/** The form's input for one of `posed_by`: the first is in the page, others are copies of it. */
function field(posed, index) {
  let element = $("posed-field");
  if (index) {
    const last = [...document.querySelectorAll("#problem .posed")].at(-1).closest(".field");
    last.after((element = element.cloneNode(true)));
    element.removeAttribute("id");
  }
  const [label, input, hint] = ["label", "input", "small"].map((tag) => element.querySelector(tag));
  if (index) {
    [input.id, hint.id] = [`posed-${posed.name}`, `posed-${posed.name}-hint`];
    label.id = `${input.id}-label`;
    label.htmlFor = input.id;
    input.setAttribute("aria-describedby", `${hint.id} fault`);
  }
  const words = posed.name === "seed" ? "problem number" : posed.name.replaceAll("_", " ");
  label.textContent = words[0].toUpperCase() + words.slice(1);
  input.inputMode = posed.kind === "text" ? "text" : "numeric";
  return { ...posed, input, hint };
}

/** Writes a problem into the form. */
function fill(asked) {
  for (const { name, input } of inputs) input.value = [asked[name] ?? ""].flat().join(" ");
}

/** How many numbers a list has in the chosen stage. */
const count = ({ length }) =>
  info.stages.find(({ stage }) => info.tells_stage || stage === Number($("stage").value)).digits ??
  length;
const isList = ({ length }) => length !== null;
const numbers = (posed) =>
  posed.kind === "digits" ? `${count(posed)} digits, 0 to 9` : `${count(posed)} numbers`;

/** The stages whose formulas have a letter for each digit, in alphabetical order: 'a*b+c'. */
const formulas = () =>
  info.stages.filter(({ formula, digits }) => {
    const letters = formula.match(/[a-z]/g) ?? [];
    return digits && letters.join("") === "abcdefghijklmnopqrstuvwxyz".slice(0, digits);
  });

/** A stage's formula with digits for its letters. */
const withDigits = ({ formula }, digits) =>
  formula.replace(/[a-z]/g, (letter) => digits[letter.charCodeAt(0) - 97]);

/** The stage and the digits of an expression that has the form of a formula: '3*4+5' of 'a*b+c'. */
function fitted(text) {
  const written = text.replace(/\s/g, "").replace(/[×·]/g, "*").replace(/[−–]/g, "-");
  for (const { stage, formula } of formulas()) {
    const pattern = formula
      .replace(/\s/g, "")
      .replace(/[^a-z0-9]/g, "\\$&")
      .replace(/[a-z]/g, "([0-9])");
    const found = written.match(new RegExp(`^${pattern}$`));
    if (found) return { stage, digits: found.slice(1).map(Number) };
  }
  return null;
}

function hint() {
  for (const posed of inputs) {
    const example = info.example[posed.name];
    if (posed.name === "seed") posed.hint.textContent = "any number draws a problem";
    else if (isList(posed)) {
      const stage = formulas().find(({ digits }) => digits === count(posed));
      const written = posed.kind === "digits" && stage && withDigits(stage, example);
      posed.hint.textContent = numbers(posed) + (written ? `, or ${written}` : "");
    }
    else posed.hint.textContent = example === undefined ? "" : `such as ${example}`;
  }
}

/** The problem in the form, as the API takes it. Faults in it are the server's to find; what is
 * left empty, behind the first input, is left out. */
function posed() {
  const asked = {};
  for (const [index, one] of inputs.entries()) {
    const text = one.input.value.trim();
    if (text || !index) asked[one.name] = read(one, text);
  }
  return info.tells_stage ? asked : { stage: Number($("stage").value), ...asked };
}

function read(posed, text) {
  if (!isList(posed)) {
    return posed.kind === "number" && /^-?\d{1,15}$/.test(text) ? Number(text) : text;
  }
  const digits = posed.kind === "digits";
  if (digits && formulas().length && /[*+×·−–-]/.test(text)) {
    const found = fitted(text);
    if (!found) {
      const known = formulas().map(({ formula }) => formula).join(" or ");
      throw new Refused(`${posed.name}: '${text}' is not ${known} with a digit for each letter.`);
    }
    $("stage").value = found.stage;
    hint();
    return found.digits;
  }
  const parts = digits && /^\d+$/.test(text) ? [...text] : text.split(/[\s,;]+/).filter(Boolean);
  const odd = parts.find((part) => !(digits ? /^\d$/ : /^-?\d+$/).test(part));
  const kind = digits ? "digit" : "number";
  if (odd !== undefined) {
    throw new Refused(`${posed.name}: '${odd}' is no ${kind}; expected ${numbers(posed)}.`);
  }
  return parts.map(Number);
}

/** Which of these agents never trained on problems of the stage; "" if all did. */
function untrained(names, stage) {
  const { formula } = info.stages.find((one) => one.stage === stage);
  const trained = ({ trained_stages }) => trained_stages === null || trained_stages.includes(stage);
  const found = info.models.filter((model) => names.includes(model.name) && !trained(model));
  if (!found.length) return "";
  const agents = found.map(({ name }) => name).join(" and ");
  return `${agents} never trained on such problems (stage ${stage}${formula && `, ${formula}`}).`;
}

/** Plays a problem; by default the one in the form. */
async function submit(drawn) {
  const question = ++asking;
  pause();
  fail("");
  try {
    const asked = drawn ?? posed();
    const models = [$("model").value, $("other").value].filter(Boolean);
    const answers = await Promise.all(models.map((model) => play({ model, ...asked })));
    if (question !== asking) return;
    problem = asked;
    lanes = answers.map((answer) => lane(answer.model, answer, null));
    $("program").hidden = false;
    const [{ formula, problem: text, target, stage }] = answers;
    // What is asked of tools is not in the problem as the agent reads it: both are shown.
    const read = info.response_length && formula !== text ? `${formula} = ` : "";
    $("program-title").textContent = `${read}${text} = ${target}`;
    $("untrained").textContent = untrained(models, stage);
    place();
    if (calm.matches) show(longest() - 1);
    else {
      show(0);
      run();
    }
  } catch (error) {
    if (question === asking) fail(error);
  }
}

/** @param suspects the names of the inputs that may be meant where the message names none */
function fail(error, suspects = inputs.map(({ name }) => name)) {
  if (error && !(error instanceof Refused)) throw error;
  $("fault").textContent = error ? error.message : "";
  // A refusal begins with what it is about: 'database: ...', 'expression and database: ...'.
  const about = error ? error.message.split(":")[0].split(" and ") : [];
  const named = inputs.some(({ name }) => about.includes(name)) ? about : suspects;
  for (const { name, input } of inputs) {
    input.setAttribute("aria-invalid", String(Boolean(error) && named.includes(name)));
  }
}

// The lanes ----------------------------------------------------------------------------------

/** @param asked the visitor's part of the question: {given, answers} */
function lane(title, answer, origin, asked = {}, before = null) {
  const made = new Lane(
    title,
    answer,
    info,
    {
      step: (index) => (pause(), show(index)),
      choose: (index, token) => choose(made, index, token),
      all: () => $("lanes").classList.toggle("all"),
      tell: (index, text, refused) => tell(made, index, text, refused),
      close: origin && (() => remove(made)),
    },
    before,
  );
  made.origin = origin;
  made.asked = asked;
  return made;
}

/** What the agent was told up to a step, as it was asked. */
const toldBefore = (from, index) => (from.asked.answers ?? []).filter(({ step }) => step <= index);

/** The same problem with another token at one step. */
async function choose(from, index, token) {
  if (from.answer.steps[index].token === token) return;
  const asked = { given: [...from.answer.program.slice(0, index), token] };
  const answers = toldBefore(from, index);
  if (answers.length) asked.answers = answers;
  const focused = (made) => made.bars.find((bar) => bar.token === token).button;
  try {
    await branch(from, index, `${token} at step ${index + 1}`, asked, focused);
  } catch (error) {
    fail(error, []);
  }
}

/** The same problem, and the agent is told another answer than the tool gives. */
async function tell(from, index, text, refused) {
  try {
    const tokens = tokensOf(text);
    const number = [...from.answers.keys()].indexOf(index) + 1;
    const asked = { answers: [...toldBefore(from, index), { step: index + 1, tokens }] };
    const given = (from.asked.given ?? []).slice(0, index + 1);
    if (given.length) asked.given = given;
    const title = `answer ${number} is ${tokens.join(" ") || "nothing"}`;
    await branch(from, index, title, asked, (made) => made.answers.get(index), from.answer);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    refused(error.message);
  }
}

/** Tokens as somebody types them: '8 6', '86' or 'NEG86'. */
function tokensOf(text) {
  const names = [...info.tokens, ...info.observed].sort((a, b) => b.length - a.length);
  const tokens = [];
  for (const word of text.split(/\s+/).filter(Boolean)) {
    let rest = word;
    while (rest) {
      const name = names.find((one) => rest.toUpperCase().startsWith(one.toUpperCase()));
      if (name === undefined) {
        throw new Refused(`'${word}' is no answer of a tool; write some of ${names.sort().join(" ")}.`);
      }
      tokens.push(name);
      rest = rest.slice(name.length);
    }
  }
  return tokens;
}

/** The same problem with a change: a lane of its own beside the original. */
async function branch(from, index, title, asked, focused, before = null) {
  pause();
  fail("");
  const question = ++asking;
  const answer = await play({ model: from.answer.model, ...problem, ...asked });
  if (question !== asking) return;
  const origin = from.origin ?? from;
  from.element.querySelector(".tell")?.remove();
  const made = lane(`${title}, ${answer.model}`, answer, origin, asked, before);
  const branches = lanes.filter((other) => other.origin);
  if (branches.length >= MAX_BRANCHES) lanes.splice(lanes.indexOf(branches[0]), 1);
  lanes.splice(lanes.indexOf(from) + 1, 0, made);
  if (!lanes.includes(made)) lanes.push(made);
  place();
  show(index);
  focused(made).focus({ preventScroll: true });
  const behavior = calm.matches ? "auto" : "smooth";
  made.element.querySelector(".heading").scrollIntoView({ block: "nearest", behavior });
  say(`New branch. ${made.said} ${answer.verdict}${made.compared}.`);
}

function remove(gone) {
  lanes = lanes.filter((other) => other !== gone);
  place();
  show(Math.min(at, longest() - 1));
  $("program").focus({ preventScroll: true });
}

const place = () => $("lanes").replaceChildren(...lanes.map((one) => one.element));
const longest = () => Math.max(...lanes.map((one) => one.length));

function show(index) {
  at = Math.max(0, Math.min(index, longest() - 1));
  for (const one of lanes) one.show(at);
  $("place").textContent = `step ${at + 1} of ${longest()}`;
  for (const [id, end] of [["first", 0], ["back", 0], ["forward", longest() - 1], ["last", longest() - 1]]) {
    $(id).setAttribute("aria-disabled", String(at === end));
  }
  say(`Step ${at + 1} of ${longest()}. ${lanes.map((one) => one.said).join(" ")}`);
}

function say(text) {
  $("said").textContent = text;
}

// Playing ------------------------------------------------------------------------------------

function run() {
  if (at >= longest() - 1) show(0);
  clearInterval(timer);
  const ms = Math.min(STEP_MS, EPISODE_MS / longest());
  timer = setInterval(() => (at < longest() - 1 ? show(at + 1) : pause()), ms);
  $("play").textContent = "Pause";
}

function pause() {
  clearInterval(timer);
  timer = null;
  $("play").textContent = "Play";
}

const KEYS = {
  ArrowLeft: () => (pause(), show(at - 1)),
  ArrowRight: () => (pause(), show(at + 1)),
  Home: () => (pause(), show(0)),
  End: () => (pause(), show(longest() - 1)),
  " ": () => (timer ? pause() : run()),
};

document.addEventListener("keydown", (event) => {
  const { target } = event;
  if (!lanes.length || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  if (target.matches("input, select, textarea")) return; // there the keys mean something else
  if (event.key === " " && target.matches("button, a")) return;
  if (event.key in KEYS) {
    event.preventDefault();
    KEYS[event.key]();
  }
});
$("first").addEventListener("click", KEYS.Home);
$("back").addEventListener("click", KEYS.ArrowLeft);
$("forward").addEventListener("click", KEYS.ArrowRight);
$("last").addEventListener("click", KEYS.End);
$("play").addEventListener("click", KEYS[" "]);
$("stage").addEventListener("change", hint);
$("problem").addEventListener("submit", (event) => (event.preventDefault(), submit()));
$("random").addEventListener("click", async () => {
  try {
    const drawn = await example(info.tells_stage ? null : Number($("stage").value));
    fill(drawn);
    await submit(drawn);
  } catch (error) {
    fail(error);
  }
});

start().catch((error) => {
  $("about").textContent = "";
  fail(error);
});
