"""Quick questions: the reader chooses, and reads at once why that is right or wrong.

A lesson's questions stand in `questions/NN.toml`, where its cells do not give the answers away.
Each choice is a `<details>` element, so the answers work without a kernel, a script or a style:
in JupyterLab, on exported pages and on GitHub alike.
"""

import hashlib
import tomllib
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ..utils.errors import InputError


@dataclass(frozen=True)
class Question:
    """A question, the right choice and why it is right, and wrong choices with what is wrong."""

    text: str
    right: str
    because: str
    wrong: dict[str, str]

    @property
    def choices(self) -> list[str]:
        """All choices, in an order that the reader cannot guess and that never changes."""
        return sorted((self.right, *self.wrong), key=lambda c: hashlib.sha256(c.encode()).digest())


class Quiz:
    """Questions as HTML; as plain text without the answers."""

    def __init__(self, questions: tuple[Question, ...]):
        self.questions = questions

    def __repr__(self) -> str:
        lines = []
        for number, question in enumerate(self.questions, 1):
            lines += [f"{number}. {question.text}", *(f"   - {c}" for c in question.choices)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts: list[str] = []
        for number, question in enumerate(self.questions, 1):
            parts += ["<p>&nbsp;</p>"] if parts else []  # else it would belong to the choice above
            parts.append(f"<p><b>{number}. {escape(question.text)}</b></p>")
            name = hashlib.sha256(question.text.encode()).hexdigest()[:8]
            for choice in question.choices:  # of one name, at most one is open
                right = choice == question.right
                said = f"Right. {question.because}" if right else f"No. {question.wrong[choice]}"
                head = f'<details name="quiz-{name}"><summary>{escape(choice)}</summary>'
                parts.append(f"{head}<blockquote>{escape(said)}</blockquote></details>")
        return "\n".join(parts)


def show(lesson: str) -> Quiz:
    """The questions of a lesson ("04"), to be the last value of its cell.

    InputError if there are none.
    """
    path = Path(__file__).parent / "questions" / f"{lesson}.toml"
    if not path.is_file():
        raise InputError(f"there are no questions for {lesson!r}: give a lesson's number, like 04.")
    asked = tomllib.loads(path.read_text(encoding="utf-8"))["question"]
    return Quiz(tuple(Question(**each) for each in asked))
