"""The functions of `toolagent` for programs and notebooks; imported when they are used."""
