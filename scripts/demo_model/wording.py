"""The closed phrase sets from which the demo's cases and answers are put together.

A model of two million parameters learns to combine known phrases, not to write new ones.
So every text the demo model reads or writes comes from here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Domain:
    """A field of work and what a Product Owner has to say about it."""

    name: str
    """Opens the product name, as in "Orchard Harvest"."""
    subject: str
    """What the product deals with; completes "helps ... with"."""
    users: tuple[str, str]
    values: tuple[str, str]
    metrics: tuple[str, str]
    non_goal: str


@dataclass(frozen=True)
class Need:
    """One requirement text and what it becomes in an answer."""

    text: str
    """The description; one with a colon breaks YAML that does not quote it."""
    answer: str
    """A functional need's capability; for the other kinds the action it calls for."""

    @property
    def has_colon(self) -> bool:
        return ": " in self.text


DOMAINS = (
    Domain(
        "Orchard Harvest",
        "picking rounds and cold storage",
        ("Orchard managers who plan the picking rounds", "Crew leaders in the rows"),
        ("Fruit reaches the cold store on the day it is picked", "Crews know the next row"),
        ("Share of fruit stored within six hours", "Idle crew hours per week"),
        "Selling fruit to wholesale buyers",
    ),
    Domain(
        "Ferry Berth",
        "berth slots and boarding",
        ("Harbour masters who assign the berths", "Deck officers on short crossings"),
        ("Ferries wait less for a free berth", "Boarding starts with complete lists"),
        ("Average wait for a berth in minutes", "Crossings that leave on time"),
        "Steering or tracking the ships themselves",
    ),
    Domain(
        "Clinic Referral",
        "referrals between practices",
        ("Practice nurses who send referrals", "Specialists who accept patients"),
        ("Patients get an appointment in days", "No referral is lost between practices"),
        ("Days from referral to appointment", "Referrals returned as incomplete"),
        "Keeping the medical record",
    ),
    Domain(
        "Museum Loan",
        "the lending of exhibits",
        ("Registrars who prepare the loans", "Curators of visiting exhibitions"),
        ("Every object has a known place and condition", "Loan papers are ready before transport"),
        ("Loans closed without a damage claim", "Days needed to approve a loan"),
        "Selling tickets to visitors",
    ),
    Domain(
        "Tram Depot",
        "the upkeep of trams",
        ("Depot planners on the night shift", "Mechanics who release the cars"),
        ("More cars are ready for the morning peak", "Faults are repaired before they return"),
        ("Cars available at six in the morning", "Repeat faults within a month"),
        "Planning the timetable",
    ),
    Domain(
        "Seed Bank",
        "seed samples and germination tests",
        ("Botanists who store the samples", "Growers who ask for seed"),
        ("Rare seed is renewed before it dies", "Growers receive seed with its history"),
        ("Samples tested on schedule", "Share of requests served in a week"),
        "Breeding new varieties",
    ),
    Domain(
        "Choir Rehearsal",
        "rehearsals and sheet music",
        ("Conductors who prepare a season", "Singers who practise at home"),
        ("Rehearsals start with the right voices", "Scores are found in seconds"),
        ("Attendance per rehearsal", "Scores missing at the first rehearsal"),
        "Recording concerts",
    ),
    Domain(
        "Bakery Order",
        "standing orders and oven plans",
        ("Bakers who plan the night", "Shop staff who take orders"),
        ("Less bread is thrown away", "Standing orders arrive complete"),
        ("Unsold loaves per day", "Orders delivered complete"),
        "Recipes and their nutrition labels",
    ),
    Domain(
        "Wind Farm",
        "turbine inspections and repairs",
        ("Site technicians who climb the turbines", "Dispatchers in the control room"),
        ("Repairs happen in calm weather windows", "Turbines stand still for fewer hours"),
        ("Hours of standstill per turbine", "Visits that end with a repair"),
        "Trading electricity",
    ),
    Domain(
        "Tool Library",
        "tools that neighbours share",
        ("Volunteers at the counter", "Members who borrow tools"),
        ("Tools come back on time and in order", "Members see what is free this weekend"),
        ("Tools returned on time", "Loans per tool and year"),
        "Renting out machines for profit",
    ),
    Domain(
        "Flood Watch",
        "river levels and sandbag teams",
        ("Wardens who watch the river", "Volunteers of the sandbag teams"),
        ("Teams leave before the water comes", "Wardens trust one picture of the river"),
        ("Minutes from warning to first team", "False warnings per season"),
        "Building dams and walls",
    ),
    Domain(
        "School Lunch",
        "menus and allergy notes",
        ("Kitchen leads who cook for schools", "Parents who note allergies"),
        ("Every child gets a safe meal", "Kitchens buy what will be eaten"),
        ("Meals with a wrong allergy note", "Food left over per school"),
        "Paying the kitchen staff",
    ),
    Domain(
        "Court Interpreter",
        "hearings and interpreters",
        ("Clerks who book interpreters", "Interpreters on call"),
        ("No hearing waits for a language", "Interpreters are paid without paper"),
        ("Hearings moved for lack of an interpreter", "Days until a fee is paid"),
        "Translating written grades",
    ),
    Domain(
        "Reef Survey",
        "dives and coral photographs",
        ("Marine biologists who lead the dives", "Divers who photograph coral"),
        ("Each dive adds to a comparable record", "Bleaching is seen in its first week"),
        ("Survey points visited per season", "Photographs with a confirmed species"),
        "Booking holiday dives",
    ),
)

FORMS = ("Portal", "Planner", "Tracker", "Desk", "Console", "Companion", "Register", "Hub")

AUDIENCES = (
    "regional cooperatives",
    "family businesses",
    "public agencies",
    "volunteer groups",
    "growing start-ups",
    "university departments",
    "nationwide chains",
    "island communities",
)

REGIONS = (
    "Northern Europe",
    "Latin America",
    "Southeast Asia",
    "Canada",
    "Southern Africa",
    "Japan",
)

FOCUSES = (
    "early warnings",
    "self-service",
    "clear reporting",
    "offline work",
    "fewer manual steps",
    "full traceability",
)

FUNCTIONAL = (
    Need("Show open tasks on a shared board", "Shared task board"),
    Need("Send a reminder before each deadline", "Deadline reminders"),
    Need("Let staff swap shifts without a phone call", "Simple shift swaps"),
    Need("Keep a history of every change", "Complete change history"),
    Need("Search records by name and date", "Fast record search"),
    Need("Scan labels with a phone camera", "Label scanning by phone"),
    Need("Collect feedback after each visit", "Feedback after visits"),
    Need("Assign work by skill and distance", "Skill-based assignment"),
    Need("Print a weekly summary for the team", "Weekly team summary"),
    Need("Import contacts from spreadsheets", "Spreadsheet import"),
    Need("Warn when stock falls below a limit", "Low stock warnings"),
    Need("Book rooms and equipment together", "Joint bookings"),
    Need("Export results in two formats: CSV and PDF", "Export of results"),
    Need("Offer two views: calendar and map", "Calendar and map views"),
    Need("Support three roles: guest, member and admin", "Role-based access"),
    Need("Record each handover: who, when and where", "Handover records"),
)

NON_FUNCTIONAL = (
    Need("Pages open in under two seconds", "Measure page times with real data"),
    Need("Uptime of 99.5 percent in working hours", "Agree how uptime is measured"),
    Need("Data is encrypted at rest and in transit", "Review the encryption with security"),
    Need("Readable with a screen reader", "Test with screen reader users"),
    Need("Works on phones with a weak signal", "Try the product on a slow network"),
    Need("Backups run daily: kept for 30 days", "Rehearse restoring a backup"),
)

CONSTRAINTS = (
    Need("Must run on the existing servers", "Check the capacity of the servers"),
    Need("Budget is fixed until the end of the year", "Rank the scope against the budget"),
    Need("Personal data stays in the country", "Ask legal where data may be kept"),
    Need("Sign-in uses the existing accounts", "Plan the sign-in with the account team"),
    Need("Only open-source components", "List the licences of all components"),
)
