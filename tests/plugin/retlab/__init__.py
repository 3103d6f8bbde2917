"""A plug-in package, used as `user_dir=tests/plugin/retlab`: one file and one import line for each registry."""

from retlab import csv_sink as csv_sink
from retlab import flat_engine as flat_engine
from retlab import flooding as flooding
from retlab import lookahead as lookahead
from retlab import looped_lm as looped_lm
from retlab import numpy_archive as numpy_archive
from retlab import questions as questions
from retlab import retention as retention
from retlab import sawtooth as sawtooth
from retlab import token_f1 as token_f1
from retlab import tsv_pairs as tsv_pairs
