"""Quick questions: every choice has its answer, none shows before it is chosen."""

from html.parser import HTMLParser

import nbformat
import pytest

from sgmgm.course import quiz, runner
from sgmgm.utils.errors import InputError

LESSONS = runner.find_lessons([], runner.ROOT / "notebooks")
ASKED = quiz.Question(
    "What is a < b?",
    right="An inequality",
    because="It compares a & b.",
    wrong={"A <tag>": "That would need a >.", "A token": "Tokens are ids."},
)


class Reader(HTMLParser):
    """Text of the page, apart from that inside `details` outside their `summary`."""

    def __init__(self):
        super().__init__()
        self.open, self.visible, self.folded, self.names = [], "", "", set()

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.names |= {value for key, value in attributes if tag == "details" and key == "name"}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "details" in self.open and "summary" not in self.open:
            self.folded += data
        else:
            self.visible += data


def test_answers_are_folded_and_escaped():
    reader = Reader()
    reader.feed(quiz.Quiz((ASKED,))._repr_html_())
    assert not reader.open and len(reader.names) == 1  # one name: one answer open at a time
    for choice in ("What is a < b?", "An inequality", "A <tag>", "A token"):
        assert choice in reader.visible
    for said in ("Right. It compares a & b.", "No. That would need a >.", "No. Tokens are ids."):
        assert said in reader.folded and said not in reader.visible


def test_plain_text_asks_without_answering():
    text = repr(quiz.Quiz((ASKED, ASKED)))
    assert text.splitlines()[0] == "1. What is a < b?" and "2. What is a < b?" in text
    assert "An inequality" in text and "Right" not in text and "compares" not in text
    assert text == repr(quiz.Quiz((ASKED, ASKED)))


def test_the_right_choice_has_no_fixed_place():
    places = {
        quiz.Question("?", f"right {i}", "", {f"wrong {i}": "", "none": ""}).choices.index(
            f"right {i}"
        )
        for i in range(30)
    }
    assert places == {0, 1, 2}


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_every_lesson_asks_three_to_five_questions(path):
    lesson = path.stem[:2]
    questions = quiz.show(lesson).questions
    assert 3 <= len(questions) <= 5
    assert all(each.wrong and each.right not in each.wrong for each in questions)
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    (asking,) = [cell for cell in cells if cell.source == f'quiz.show("{lesson}")']
    kept = asking.outputs[0].data
    assert kept["text/plain"] == repr(quiz.show(lesson))
    assert kept["text/html"] == quiz.show(lesson)._repr_html_()


@pytest.mark.parametrize("lesson", ["77", "", "../04"])
def test_a_lesson_without_questions_is_one_sentence(lesson):
    with pytest.raises(InputError, match="there are no questions for"):
        quiz.show(lesson)
