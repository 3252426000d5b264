"""How WorldVLA learns: demonstrations to tokens, tokens to a checkpoint. Lives in a git checkout, not on the Hub."""
