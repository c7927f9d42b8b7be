"""The paper's figures in small: which runs each one takes, what is measured in them, and what that says."""
