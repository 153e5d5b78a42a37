"""One episode of the task `toolcall` in plain Python, written from its rules and nothing of the
package: the oracle of the batched machine.
"""

import re

# A call as a text with one letter a token.
LETTERS = {
    **{str(digit): str(digit) for digit in range(10)},
    **{"NEG": "n", "ADD": "a", "SUB": "s", "MUL": "m", "GET": "g", "ANS": "x", ",": ",", "=": "="},
    **{key: key for key in "ABCDEFGH"},
}
ACTIONS = list(LETTERS)
BEGUN = re.compile(r"(g([A-H]=?)?|[asm](n?(\d{1,4}(,(n?(\d{1,4}=?)?)?)?)?)?|x(n?(\d{1,4}=?)?)?)?")
LIMITS = [7, 11, 17, 21, 25, 28, 40, 54, 68]


def value_of(expression, database):
    """What an expression comes to."""
    known = dict(zip("ABCDEFGH", database, strict=True))
    return eval("".join(str(known.get(character, character)) for character in expression))


def can_begin(call):
    """Some call begins with these tokens."""
    return BEGUN.fullmatch("".join(LETTERS[token] for token in call)) is not None


class Episode:
    """Take tokens by name until `ended`."""

    def __init__(self, stage, expression, database):
        self.stage, self.database = stage, database
        self.value = value_of(expression, database)
        self.operands = len(re.findall(r"[0-9A-H]", expression))
        self.call = []
        self.steps = self.answered = 0
        self.reward, self.ended = 0, None  # 'answered' or 'truncated'

    def step(self, token):
        """The names of the tokens that it is answered with."""
        self.steps += 1
        response = []
        if not can_begin([*self.call, token]):
            self.call, response = [], ["ERR"]
        elif token != "=":
            self.call.append(token)
        else:
            tool, *rest = self.call
            self.call = []
            response = self.finish(tool, " ".join(rest).split(" , "))
        out = self.steps >= LIMITS[self.stage] or self.answered > 2 * self.operands + 1
        if self.ended is None and out:
            self.ended = "truncated"
        return response

    def finish(self, tool, arguments):
        """A whole call."""
        if tool == "GET":
            result = self.database["ABCDEFGH".index(arguments[0])]
        else:
            numbers = [int(text.replace("NEG", "-").replace(" ", "")) for text in arguments]
            if tool == "ANS":
                self.ended, self.reward = "answered", int(numbers == [self.value])
                return []
            first, second = numbers
            result = {"ADD": first + second, "SUB": first - second, "MUL": first * second}[tool]
        if abs(result) > 9999:
            return ["ERR"]
        self.answered += 1
        return [*(["NEG"] if result < 0 else []), *str(abs(result))]
