// One lane: one agent's episode, shown at one step. It draws and reports clicks, and keeps nothing
// but the elements it made.

const LIKELIEST = 6; // tokens that a narrow window shows, unless all are asked for

const percent = (p) => `${(100 * p).toFixed(p < 0.0995 ? 2 : p < 0.9995 ? 1 : 0)}%`;

/** An element: make("p", { class: "x" }, "text", child, ...). */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

const words = (tokens) => tokens.join(" ") || "nothing";

/** What stands below a step: what its action was answered with, if it was, and the registers. */
const told = ({ response, replaced, registers }) => [
  ...(response?.length || replaced ? [["answered with", words(response), true]] : []),
  ...(replaced ? [["in place of", words(replaced), true]] : []),
  ...Object.entries(registers),
];

/** Where a token was copied from: 'answer 2: [8] 6', 'the problem: B'. */
function source({ answer, place, tokens }) {
  if (answer === null) return `the problem: ${tokens[0]}`;
  const marked = tokens.map((token, index) => (index === place ? `[${token}]` : token));
  return `answer ${answer}: ${(tokens.length > 1 ? marked : tokens).join(" ")}`;
}

/** A token that was read: what that did with the stack of states, and how many entries it left. */
function readToken({ token, push, pop, keep, depth, written }, all) {
  const most = Math.max(...all.map((row) => row.depth));
  const action = push > pop && push > keep ? "push" : pop > keep ? "pop" : "keep";
  const shares = `push ${percent(push)}, pop ${percent(pop)}, keep ${percent(keep)}`;
  const item = make(
    "li",
    { class: action, title: `${shares}; entries behind it: ${depth}; written from it: ${words(written)}` },
    make("b", {}, token),
    make("small", {}, action === "keep" ? "" : action),
    make("span", { class: "unseen" }, `, ${depth} deep`),
  );
  item.style.paddingTop = `${0.35 * (most - depth)}rem`; // what is deeper stands higher
  return item;
}

const reading = (tokens) =>
  make(
    "figure",
    { class: "reading" },
    make("figcaption", {}, "Read before it wrote, with a stack of states; marked: what this step is from"),
    make("ol", {}, ...tokens),
  );

/**
 * @param title what the lane is called
 * @param answer a `PlayAnswer`
 * @param info the server's `Models`: the tokens, and the registers at the start
 * @param on {step(index), choose(index, token), all(), tell(index, text, refused(reason)),
 *   close() or null}
 * @param before the `PlayAnswer` that this one is compared with, or null
 */
export class Lane {
  constructor(title, answer, { tokens, start }, on, before = null) {
    this.title = title;
    this.answer = answer;
    this.tokens = tokens;
    this.start = start;
    this.before = before;
    const id = `lane-${Lane.count++}`;
    this.chips = answer.steps.map((step, index) =>
      make(
        "button",
        {
          type: "button",
          class: `chip${this.forced(step) ? " given" : ""}${this.differs(index) ? " differs" : ""}`,
          onclick: () => on.step(index),
          "aria-label": `Step ${index + 1}, ${step.token}${this.forced(step) ? ", chosen by you" : ""}${this.differs(index) ? `, before the change ${this.once(index)}` : ""}`,
        },
        step.token,
      ),
    );
    this.answers = new Map(); // the steps that were answered, each with a button
    answer.steps.forEach((step, index) => {
      if (!step.response?.length && !step.replaced) return;
      const number = this.answers.size + 1;
      const instead = step.replaced ? `, told by you in place of ${words(step.replaced)}` : "";
      const button = make(
        "button",
        {
          type: "button",
          class: step.replaced ? "answer given" : "answer",
          title: "Change what the agent is told",
          "aria-label": `Answer ${number}: ${words(step.response)}${instead}. Change it`,
          onclick: () => this.edit(index, button, on.tell),
        },
        make("small", {}, `answer ${number}:`),
        words(step.response),
      );
      this.answers.set(index, button);
    });
    this.bars = tokens.map((token) => {
      const fill = make("span", { class: "fill" });
      const number = make("span", { class: "number" });
      const button = make(
        "button",
        { type: "button", class: "token", onclick: () => on.choose(this.index, token) },
        make("span", { class: "name" }, token),
        make("span", { class: "track" }, fill),
        number,
      );
      return { token, button, fill, number };
    });
    this.registers = make("dl", { class: "registers" });
    this.read = (answer.reading ?? []).map((row) => readToken(row, answer.reading));
    this.caption = make("p", { class: "caption" });
    this.verdict = make("p", { class: "verdict" });
    const heading = make("h3", { id }, title);
    const close = on.close
      ? make("button", { type: "button", class: "close", onclick: on.close }, "Remove")
      : "";
    if (close) close.setAttribute("aria-label", `Remove ${title}`);
    this.element = make(
      "article",
      { class: "lane", "aria-labelledby": id },
      make("div", { class: "heading" }, heading, close),
      make(
        "div",
        { class: "chips", role: "group", "aria-label": this.answers.size ? "Conversation" : "Program" },
        ...this.chips.flatMap((chip, index) =>
          this.answers.has(index) ? [chip, this.answers.get(index), make("i", { class: "turn" })] : [chip],
        ),
      ),
      this.verdict,
      this.caption,
      make("div", {}, this.registers, this.read.length ? reading(this.read) : ""),
      make(
        "div",
        { class: "tokens", role: "group", "aria-label": "Probabilities of all tokens" },
        ...this.bars.map((bar) => bar.button),
        make(
          "button",
          { type: "button", class: "more", hidden: tokens.length <= LIKELIEST, onclick: on.all },
          make("span", {}, `All ${tokens.length} tokens`),
          make("span", {}, `The ${LIKELIEST} likeliest tokens`),
        ),
      ),
    );
  }

  probability = (step) => step.probabilities[this.tokens.indexOf(step.token)];

  /** Whether the agent would have written something else here. */
  forced = (step) => step.given && this.probability(step) < Math.max(...step.probabilities);

  /** What was written at this step before the change; "nothing" behind the end. */
  once = (index) => this.before.steps[index]?.token ?? "nothing";
  differs = (index) => this.before !== null && this.once(index) !== this.answer.steps[index].token;

  /** A field behind an answer, for another one. */
  edit(index, button, tell) {
    this.element.querySelector(".tell")?.remove();
    const input = make("input", {
      value: this.answer.steps[index].response.join(" "),
      autocomplete: "off",
      autocapitalize: "off",
      spellcheck: "false",
      "aria-label": `What the agent is told at step ${index + 1}`,
    });
    const fault = make("p", { class: "fault", role: "alert" });
    const close = () => (form.remove(), button.focus({ preventScroll: true }));
    const refused = (reason) => {
      fault.textContent = reason;
      input.setAttribute("aria-invalid", "true");
    };
    const form = make(
      "form",
      {
        class: "tell",
        onsubmit: (event) => (event.preventDefault(), tell(index, input.value, refused)),
        onkeydown: (event) => event.key === "Escape" && close(),
      },
      make("label", {}, "Tell the agent ", input),
      make("button", { type: "submit", class: "primary" }, "Play on"),
      make("button", { type: "button", onclick: close }, "Cancel"),
      fault,
    );
    button.after(form);
    input.select();
  }

  get length() {
    return this.answer.steps.length;
  }

  /** Shows a step; behind the end, the last one. */
  show(index) {
    this.index = Math.min(index, this.length - 1);
    const step = this.answer.steps[this.index];
    const before = this.index ? this.answer.steps[this.index - 1].registers : this.start;
    this.chips.forEach((chip, place) => {
      chip.classList.toggle("ahead", place > this.index);
      if (place === this.index) chip.setAttribute("aria-current", "step");
      else chip.removeAttribute("aria-current");
    });
    this.answers.forEach((button, place) => {
      button.classList.toggle("ahead", place > this.index);
    });
    const ranked = [...this.tokens.keys()].sort((a, b) => step.probabilities[b] - step.probabilities[a]);
    const likeliest = new Set(ranked.slice(0, LIKELIEST));
    if (!likeliest.has(this.tokens.indexOf(step.token))) likeliest.delete(ranked[LIKELIEST - 1]);
    this.bars.forEach(({ token, button, fill, number }, place) => {
      const p = step.probabilities[place];
      const chosen = token === step.token;
      fill.style.width = `${Math.max(100 * p, p > 0 ? 0.5 : 0)}%`;
      number.textContent = percent(p);
      button.classList.toggle("chosen", chosen);
      button.classList.toggle("unlikely", !chosen && !likeliest.has(place));
      button.setAttribute("aria-pressed", String(chosen));
      button.setAttribute("aria-label", `${token}, ${percent(p)}`);
      button.title = chosen ? "" : `Choose ${token} at step ${this.index + 1}`;
    });
    const by = percent(this.probability(step)) + (this.forced(step) ? ", chosen by you" : "");
    this.caption.replaceChildren(
      `Step ${this.index + 1}: `,
      make("strong", {}, step.token),
      ` (${by}); expected reward before it ${step.value.toFixed(2)}`,
      step.copied_from
        ? `; copied from ${source(step.copied_from)} (${percent(step.copied_from.weight)})`
        : "",
      this.differs(this.index) ? `; before the change: ${this.once(this.index)}` : "",
    );
    this.registers.replaceChildren(
      ...told(step).map(([name, value, answer]) => {
        const changed = answer || value !== (before[name] ?? null);
        const shown = typeof value === "string" ? value.split(" ") : [value];
        return make(
          "div",
          {},
          make("dt", {}, name),
          make(
            "dd",
            { class: changed ? "changed" : "" },
            ...shown.map((part) =>
              part === null ? make("span", { class: "empty" }, "empty") : make("span", {}, String(part)),
            ),
          ),
        );
      }),
    );
    this.read.forEach((item, place) => {
      const { steps } = this.answer.reading[place];
      item.classList.toggle("now", steps.includes(this.index + 1));
    });
    const over = this.index === this.length - 1;
    const { solved, answer, verdict, computes } = this.answer;
    this.verdict.className = over ? `verdict ${solved ? "right" : "wrong"}` : "verdict";
    this.verdict.textContent = over
      ? `${solved ? "✓" : "✗"} ${verdict}${computes ? `; its program computes ${computes}` : ""}${this.compared}`
      : "… still writing";
    this.element.dataset.solved = String(solved);
    this.element.dataset.answer = String(answer);
  }

  /** What was answered before the change, if there was one. */
  get compared() {
    if (this.before === null) return "";
    if (this.before.answer === null) return "; before the change it did not answer";
    const same = this.before.answer === this.answer.answer ? "too, " : "";
    return `; before the change ${same}it answered ${this.before.answer}`;
  }

  /** The step as a screen reader says it. */
  get said() {
    const step = this.answer.steps[this.index];
    const registers = told(step)
      .map(([name, value]) => `${name} ${value ?? "empty"}`)
      .join(", ");
    const end = this.index === this.length - 1 ? ` ${this.answer.verdict}${this.compared}.` : "";
    return `${this.title}: ${step.token}; ${registers}.${end}`;
  }
}
Lane.count = 0;
