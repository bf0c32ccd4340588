from functional_nn.lab.demonstrations.page import Demonstration, lay_out, words


def build(document):
    lay_out(document, "Populations", "about", main=words("x"))


def warm_up(): ...
def use(sweep): ...


DEMONSTRATION = Demonstration("populations", "Populations", "about", build, warm_up)
