"""The laboratory of `saqrl quantize`: how well codes stand for a data set's actions."""
