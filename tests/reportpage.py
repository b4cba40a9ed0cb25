"""Pages of a report as tests read them: text, links and tags, without a browser."""

from html.parser import HTMLParser

from bayesqid.answers import asking, project
from bayesqid.report import blocks, pages, tables


def projected(posterior, tokens=1e14, **options):
    return project.project(posterior, asking.targets(posterior, tokens, **options))


class Page(HTMLParser):
    """Tags that must close do, links and texts are kept."""

    VOID = frozenset({"meta", "img", "br", "link", "hr"})

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images, self.words, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[name] for name in ("href", "src", "srcset", "action") if name in found]
        self.images += [found] if tag == "img" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def both(posterior, **options):
    """HTML as text and Markdown of a report that is not written, figures left out."""
    projection = projected(posterior, **options)
    answer = blocks.Section("answer", "Answer", (tables.answer(projection),))
    head = pages.heading(posterior, projection) | {"sections": (answer,)}
    return Page(pages.html(head)).text, pages.markdown(head)
