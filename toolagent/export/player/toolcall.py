"""Task `toolcall`: its problems as typed, and its tools."""

import re

FLAGS = ("--expression", "--database")  # 3*B+C-7, and the values of A to H: "92 19 3 86 8 1 48 2"
OPERATIONS = {"MUL": int.__mul__, "ADD": int.__add__, "SUB": int.__sub__}
BEGUN, NUMBER = r"( NEG)?( \d){0,4}", r"( NEG)?( \d){1,4}"
CALL = rf" GET [A-H] =| (ADD|SUB|MUL){NUMBER} ,{NUMBER} =| ANS{NUMBER} ="
BEGUN_CALL = rf" GET( [A-H])?| (ADD|SUB|MUL)({BEGUN}|{NUMBER} ,{BEGUN})| ANS{BEGUN}"


class Tools:
    """Reads calls token by token and answers each once: GET key =, ADD num , num =, ANS num =."""

    def __init__(self, context, database):
        self.database, self.call, self.left = database, "", 2 * len(context[::2]) + 1
        self.answer = None

    def __call__(self, token):
        """The tokens of the answer, and whether the episode is over."""
        self.call += f" {token}"
        if re.fullmatch(BEGUN_CALL, self.call):
            return [], False
        call, self.call = self.call, ""
        if not re.fullmatch(CALL, call):
            return ["ERR"], False
        tool = call.split()[0]
        if tool == "GET":
            value = self.database["ABCDEFGH".index(call.split()[1])]
        else:
            numbers = call.replace("NEG", "-").replace(" ", "")[3:-1].split(",")
            if tool == "ANS":
                self.answer = int(numbers[0])
                return [], True
            value = OPERATIONS[tool](*map(int, numbers))
        if abs(value) > 9999:
            return ["ERR"], False
        self.left -= 1
        return [*["NEG"] * (value < 0), *str(abs(value))], self.left < 0


def read(given, card):
    """The context's tokens, the stage, and the tools of a problem."""
    text = given["--expression"].replace(" ", "")
    values = given.get("--database", "0 " * 8).split()
    if not re.fullmatch("[0-9A-H]([-+*][0-9A-H]){0,4}", text):
        raise ValueError("--expression: expected up to 5 digits or keys A-H with + - *: 3*B+C-7")
    if len(values) != 8 or not all(re.fullmatch("[0-9]{1,2}", value) for value in values):
        raise ValueError("--database: expected the values of A to H, eight numbers 0..99")
    context = [*map({"*": "MUL", "+": "ADD", "-": "SUB"}.get, text, text)]
    operands, keys = len(context[::2]), len(re.findall("[A-H]", text))
    stage = [[], [0, 1], [2, 3, 4], [5, 6, 6, 6], [7] * 5, [8] * 6][operands][keys]
    return context, stage, Tools(context, [int(value) for value in values])
