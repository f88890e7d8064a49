"""Counted things of word problems: nouns that may follow a number without changing it (`7 apples`).

The list is closed, because any other word may change the number (`7 times`, `4 factorial`, `5 halves`). Words that are
both a thing and a scale (`dozens`, `quarters`, `tens`) are left out.
"""

_PLURALS = """
acorns actors ads adults airplanes albums alligators animals antacids ants apartments appetizers apples apps aprons
aquariums arms arrangements articles artworks asparagus athletes atoms attendees avocados awards babies bacteria bags
baguettes bales balloons balls bananas barrels bars basketballs baskets batches bathrooms beads beakers bears beats
bedbugs bedrooms beds bees beetles beignets benches berries bicycles bikes billboards bills birds biscuits blankets
blisters blocks blouses blueberries boards boats bollards bolts bones bonnets bonus books bottles bouquets bowls boxes
boys bracelets branches bricks brochures brothers brownies bubbles buckets bugs builders buildings bulbs bunches
bundles bunnies burgers burritos buses bushels bushes butterflies buttons cabinets cakes calories campers candies
candles candy cans cantaloupes caps capsules cardinals cards carnations carpenters carpets carriages carrots cars
cartons cases caterpillars cats cds ceilings cells chairs channels chapters characters charges charts cheerleaders
cheesecakes chefs cherries chickens chicks chihuahuas children chips chocolates choices chores circles citizens claims
clarinets classes classmates classrooms clerks clients clothes clouds clovers clips cloves clusters coats coconuts
coffees coins collectors colors combinations comics computers contacts containers cookies copies corn countries
couples coupons courses cows crabs crackers cranberries craters crates crayons credits crickets croissants crows cubes
cucumbers cupcakes customers daisies dandelions daughters decks decorations deer delegates demerits desks desserts
devices diagonals dice digits dimes dishes divisors doctors dogs dolls dolphins dominoes donations donuts doors dots
doughnuts drawings dress dresses drinks driveways drops drums ducklings ducks earrings ears edges eggplants eggs
electrons elements elephants emails employees emus enemies engines entrees envelopes episodes erasers exams exercises
eyes faces factors families fans farthings feathers females fences ferns figurines files fingers firecrackers fires
fireworks fish fishes flags flats flavors fleas flies flights floors flowers flyers folders followers footprints forks
forms friends fries frogs fruit fruits furniture games geckos geese gems gemstones gifts gingerbreads giraffes girls
glass glasses gloves gnomes goals goats grains grapes grasshoppers groups guests guitars gumballs guppies haircuts
hairs hamburgers hands handshakes hats heads hens hexagons highlighters hits hives holes homes homeworks honeydews
horses hotdogs houses hushpuppies individuals insects instances integers intersections iphones ipods items jackets
jars jeans jellybeans jerseys joggers judges juices jumps kangaroos kernels keys kids kindergartners kinds kittens
knives ladders ladybugs lambs lamps laps laptops lattes lawns leaves legos legs lemons lens leopards lessons letters
levels licks lilies lines lions lizards loads loaves logs lollipops losses macarons machines magazines maggots magnets
males mangoes mangos marbles marigolds markers marks marshmallows masks matches matchsticks meals meatballs members
men messages mice milkshakes minnows mistakes models molecules moles money monitors monkeys monsters motorcycles
movies muffins mugs mushrooms nails napkins necklaces neighbors nephews neutrons newspapers nickels nieces nights
notebooks notes novels numbers nurses nuts objects olives onions options oranges orders oreos outcomes oxen oysters
packages packets packs pages paintings pairs pallets pamphlets pancakes pandas panels pans pants papayas paperclips
papers paragraphs parents parrots parsnips particles parts passengers passes pastries patches paths patients patrons
peaches peanuts pears pebbles pencils penguins pennies pens pentagons people peppers periods permutations pesetas
petals pets petunias pfennigs phones photographs photos pictures pieces pies pigeons piglets pigs piles pillows pills
pineapples pinecones pins pistachios pitches pizza pizzas planks plants plates players plays pockets pointers points
pollywogs polygons poodles pools portions posters potatoes pots presents pretzels primes problems protons pumpkins
pupils puppies pups purses pushups puzzles questions quilts quizzes rabbits racers radishes raisins raspberries rats
records recoveries rectangles regions reps residents restaurants rhinestones rhinos ribbons riddles ridges rings
robins rocks rolls roommates rooms roosters roots roses rotations rounds routes rows rulers rungs runs sacks sales
sandwiches sausages scarves schools scientists scoops screens screws seagulls seashells seasons seats sections sectors
seedlings seeds segments semesters sentences sequences servings sessions sets sharks sheep sheets shells shelves
shingles shirts shoes shorts shots shows siblings sides singers sisters sites situps skips skirts slices snails snakes
snowballs snowflakes socks sodas soldiers solutions songs sons spaces sparklers spears spiders spokes spools spoons
spots squirrels stacks stairs stamps staplers stars statues steaks stems steps stickers sticks stitches stoplights
stores stories strands strawberries straws streets strings stripes strokes students stuffies subjects subscribers
subsets suckers suitcases sundaes sunflowers surfers surveys swallows swans sweaters sweets tables tadpoles tails
tangents tangerines tanks tarantulas tasks teachers teeth televisions tennis tents terms teslas tests textbooks texts
thermoses things tickets ties tigers tiles tins tires tissues toads toddlers toenails toes tokens tomatoes
toothbrushes toothpicks toppings touchdowns tourists towels towers toys tractors trains trays treats trees triangles
tricycles trips trouts trucks trumpets tubes tubs tulips turkeys turtles tvs twigs types vampires vans vegetables
vehicles vertices vibrations videos visitors visits volunteers voters votes waiters walls walnuts washers watermelons
values ways weasels websites weeds wheels whiskers whistlers widgets wights windows wings wins wipes women words
workdays workers worms zebras zeros zits zombies
"""
_IRREGULAR = {
    **{"people": "person", "children": "child", "men": "man", "women": "woman", "mice": "mouse", "geese": "goose"},
    **{"teeth": "tooth", "oxen": "ox", "dice": "die", "vertices": "vertex"},
}


def singular(word: str) -> str:
    """Common form of a thing's singular and plural: `apples` is `apple`, `boxes` is `box`, `cherries` is `cherry`."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for plural, ending in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss"), ("oes", "o")):
        if word.endswith(plural) and len(word) > len(plural) + 2:
            return word.removesuffix(plural) + ending
    if word.endswith("ves") and len(word) > 5:
        return word.removesuffix("ves") + "f"
    return word if word.endswith("ss") else word.removesuffix("s")


COUNTED = frozenset(singular(word) for word in _PLURALS.split())
