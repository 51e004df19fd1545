"""Studies: grids of stage chains, each stage trained once, and the table that compares them."""

from transferseg.study.cells import AxisValue, CellResult
from transferseg.study.grid import Cell, Study
from transferseg.study.run import StudyResult, run_study
from transferseg.study.table import StudyTable, TableRow
from transferseg.study.two_step import PRETRAININGS, Initial, TwoStep

__all__ = [
    "PRETRAININGS",
    "AxisValue",
    "Cell",
    "CellResult",
    "Initial",
    "Study",
    "StudyResult",
    "StudyTable",
    "TableRow",
    "TwoStep",
    "run_study",
]
