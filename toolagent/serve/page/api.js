// The server's JSON API. Every request carries its whole problem; the server keeps nothing.

/** Thrown for a refusal: `message` is the server's reason. */
export class Refused extends Error {}

export const about = () => call("api/models");
export const example = (stage) => call(stage === null ? "api/example" : `api/example?stage=${stage}`);

/** A played problem: `{model, ...problem, given}` to a `PlayAnswer`. */
export const play = (asked) =>
  call("api/play", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(asked),
  });

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Refused("The server does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(answer.detail ?? `The server answered ${response.status}.`);
  return answer;
}
