"""The pictures of a run: loss, expert routing, loop gates. matplotlib loads when one is drawn."""

from loopmoe_train.observe.plots.gates import plot_gates
from loopmoe_train.observe.plots.loss import plot_loss
from loopmoe_train.observe.plots.routing import plot_routing

__all__ = ["plot_gates", "plot_loss", "plot_routing"]
