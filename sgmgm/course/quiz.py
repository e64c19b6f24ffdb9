"""Quick questions: the reader chooses, and reads at once why that is right or wrong.

Each choice is a `<details>` element, so the answers work without a kernel, a script or a style:
in JupyterLab, on exported pages and on GitHub alike.
"""

import hashlib
from dataclasses import dataclass
from html import escape

from ..utils.errors import InputError


@dataclass(frozen=True)
class Question:
    """A question, the right choice and why it is right, and wrong choices with what is wrong."""

    text: str
    right: str
    because: str
    wrong: dict[str, str]

    def __post_init__(self):
        if not self.wrong or self.right in self.wrong:
            raise InputError(f"{self.text!r} needs choices that differ from the right one.")

    @property
    def choices(self) -> list[str]:
        """All choices, in an order that the reader cannot guess and that never changes."""
        return sorted((self.right, *self.wrong), key=lambda c: hashlib.sha256(c.encode()).digest())

    def feedback(self, choice: str) -> str:
        """What the reader of this choice reads next."""
        right = choice == self.right
        return f"Right. {self.because}" if right else f"No. {self.wrong[choice]}"


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
        parts = []
        for number, question in enumerate(self.questions, 1):
            parts.append(f"<p><b>{number}. {escape(question.text)}</b></p>")
            name = hashlib.sha256(question.text.encode()).hexdigest()[:8]
            for choice in question.choices:  # of one name, at most one is open
                said = escape(question.feedback(choice))
                head = f'<details name="quiz-{name}"><summary>{escape(choice)}</summary>'
                parts.append(f"{head}<blockquote>{said}</blockquote></details>")
        return "\n".join(parts)


def show(*questions: Question) -> Quiz:
    """The questions, to be the last value of a lesson's cell."""
    return Quiz(questions)
