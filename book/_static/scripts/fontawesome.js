// Takes the place of the theme's FontAwesome script, more than a megabyte that turns icons into SVG.
// The icons come from the theme's style sheet and its fonts, so nothing is needed here.
