// One lane: one agent's episode, shown at one step. It draws and reports clicks, and keeps nothing
// but the elements it made.

const percent = (p) => `${(100 * p).toFixed(p < 0.0995 ? 2 : 1)}%`;

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

/** What stands below a step: what its action was answered with, and the registers. */
const told = ({ response, registers }) => [
  ...(response ? [["answered with", response.join(" ") || "nothing", true]] : []),
  ...Object.entries(registers),
];

/**
 * @param title what the lane is called
 * @param answer a `PlayAnswer`
 * @param info the server's `Models`: the tokens, and the registers at the start
 * @param on {step(index), choose(index, token), close() or null}
 */
export class Lane {
  constructor(title, answer, { tokens, start }, on) {
    this.title = title;
    this.answer = answer;
    this.tokens = tokens;
    this.start = start;
    const id = `lane-${Lane.count++}`;
    this.chips = answer.steps.map((step, index) =>
      make(
        "button",
        {
          type: "button",
          class: this.forced(step) ? "chip given" : "chip",
          onclick: () => on.step(index),
          "aria-label": `Step ${index + 1}, ${step.token}${this.forced(step) ? ", chosen by you" : ""}`,
        },
        step.token,
      ),
    );
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
      make("div", { class: "chips", role: "group", "aria-label": "Program" }, ...this.chips),
      this.verdict,
      this.caption,
      this.registers,
      make(
        "div",
        { class: "tokens", role: "group", "aria-label": "Probabilities of all tokens" },
        ...this.bars.map((bar) => bar.button),
      ),
    );
  }

  probability = (step) => step.probabilities[this.tokens.indexOf(step.token)];

  /** Whether the agent would have written something else here. */
  forced = (step) => step.given && this.probability(step) < Math.max(...step.probabilities);

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
    this.bars.forEach(({ token, button, fill, number }, place) => {
      const p = step.probabilities[place];
      const chosen = token === step.token;
      fill.style.width = `${Math.max(100 * p, p > 0 ? 0.5 : 0)}%`;
      number.textContent = percent(p);
      button.classList.toggle("chosen", chosen);
      button.setAttribute("aria-pressed", String(chosen));
      button.setAttribute("aria-label", `${token}, ${percent(p)}`);
      button.title = chosen ? "" : `Choose ${token} at step ${this.index + 1}`;
    });
    const by = percent(this.probability(step)) + (this.forced(step) ? ", chosen by you" : "");
    this.caption.replaceChildren(
      `Step ${this.index + 1}: `,
      make("strong", {}, step.token),
      ` (${by}); expected reward before it ${step.value.toFixed(2)}`,
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
    const over = this.index === this.length - 1;
    const { solved, answer, verdict, computes } = this.answer;
    this.verdict.className = over ? `verdict ${solved ? "right" : "wrong"}` : "verdict";
    this.verdict.textContent = over
      ? `${solved ? "✓" : "✗"} ${verdict}${computes ? `; its program computes ${computes}` : ""}`
      : "… still writing";
    this.element.dataset.solved = String(solved);
    this.element.dataset.answer = String(answer);
  }

  /** The step as a screen reader says it. */
  get said() {
    const step = this.answer.steps[this.index];
    const registers = told(step)
      .map(([name, value]) => `${name} ${value ?? "empty"}`)
      .join(", ");
    const end = this.index === this.length - 1 ? ` ${this.answer.verdict}.` : "";
    return `${this.title}: ${step.token}; ${registers}.${end}`;
  }
}
Lane.count = 0;
