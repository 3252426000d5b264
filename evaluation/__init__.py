"""How the model is judged: the LIBERO simulator, the scripted expert, rollouts and reports."""
