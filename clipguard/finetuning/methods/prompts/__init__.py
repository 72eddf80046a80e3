"""Methods that train context vectors of prompts alone; the model's weights stay as they are."""
