"""From a request to a plan, and from a plan to messages.  Needs neither torch nor a GPU."""
