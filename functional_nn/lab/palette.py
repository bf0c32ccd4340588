"""The colours of the pictures: those of Okabe and Ito (2008), which people with any colour vision can tell apart."""

__all__ = ["BLACK", "BLUE", "GREEN", "GREY", "ORANGE", "PURPLE", "SKY_BLUE", "VERMILION"]

BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
ORANGE = "#e69f00"
SKY_BLUE = "#56b4e9"
BLACK = "#000000"
GREY = "#999999"
