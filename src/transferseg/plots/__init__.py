"""Pictures of what a model does: overlays, learning curves, bars.

Every function draws into a matplotlib Axes (a new one unless it is given) and returns it; pyplot's
global state is neither read nor changed, so that all of this works without a display. matplotlib is
imported when the first picture is drawn.
"""

from transferseg.plots.charts import bars, curves
from transferseg.plots.figures import PALETTE, save
from transferseg.plots.overlays import overlay

__all__ = ["PALETTE", "bars", "curves", "overlay", "save"]
