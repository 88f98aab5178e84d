"""What a comparison lets one claim: paired statistics, the ladder of refusals, break-even, attribution."""

from tpsprune.claims.assess import assess
from tpsprune.claims.change import change_of
from tpsprune.claims.ladder import Evidence, standing_of

__all__ = ["Evidence", "assess", "change_of", "standing_of"]
