"""What several test modules of one op share: its inputs and the comparison with the reference."""
