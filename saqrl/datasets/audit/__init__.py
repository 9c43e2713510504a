"""What is in a log and what is wrong with it: findings, as words and as a picture."""
