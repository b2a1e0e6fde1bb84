"""Where the samples of the tasks come from: data sets, and what is made up."""
