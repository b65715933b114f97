"""Update rules behind one interface: a learner turns a rollout into new parameters."""
