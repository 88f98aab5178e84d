"""What a comparison lets one say: paired statistics, the ladder of refusals, break-even, attribution."""

from tpsprune.claims.assess import assess
from tpsprune.claims.change import change_of, corrected
from tpsprune.claims.ladder import Evidence, standing_of

__all__ = ["Evidence", "assess", "change_of", "corrected", "standing_of"]
